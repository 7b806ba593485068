; What is issued behind an `lds` is behind all that it waited for.
li r1, 4
r.iota sp[0], count=r1 post(t1)
lds r2, sp[0], max=3 wait(t1)
v.fill sp[0], cols=4, value=r2
halt
