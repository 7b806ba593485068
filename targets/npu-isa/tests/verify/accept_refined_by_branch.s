; The branch says that r1 is at least 8.
lds r1, sp[0], max=100
branch lt, r1, 8, small
sub r1, r1, 8
v.fill sp[32], cols=4, value=r0, rows=r1
small:
halt
