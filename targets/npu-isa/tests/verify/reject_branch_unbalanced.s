lds r1, sp[0], max=5
skip_if_zero r1, none
v.fill sp[64], cols=16, value=r0 post(t1)
none:
sync store wait(t1)  ;~ t1: wanted as many tokens on all ways here, found 1 or 0
halt
