li r1, 262016
v.fill sp[r1], cols=32, value=r0
halt
