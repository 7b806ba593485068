v.fill sp[0], cols=64, value=r0 post(t1)
store dram[0], sp[0], row_bytes=256 wait(t1)
v.fill sp[224], cols=8, value=r0  ;~ operand dst writes sp[224]: wanted tokens that order it behind instruction 1, `store dram[0], sp[0], row_bytes=256 wait(t1)`, which reads that, found none
halt
