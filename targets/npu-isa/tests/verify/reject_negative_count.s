lds r1, sp[0], max=10
sub r1, r1, 4
v.fill sp[32], cols=4, value=r0, rows=r1  ;~ operand dst: wanted 0 to 2^48 on all ways here, found -4
halt
