li r1, 262016
v.fill sp[r1], cols=33, value=r0  ;~ operand dst writes sp[262147]: wanted below sp[262144] on edge-16, found bytes up to 262148
halt
