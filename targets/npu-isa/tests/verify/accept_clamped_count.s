lds r1, sp[0], max=10
sub r1, r1, 4
max r1, r1, 0
v.fill sp[32], cols=4, value=r0, rows=r1
halt
