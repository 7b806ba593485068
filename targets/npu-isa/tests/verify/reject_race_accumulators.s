load w[0], dram[0], row_bytes=256 post(t1)
m.preload i8, w[0], k=16, n=16 wait(t1)
m.pass sp[0], acc[0], rows=8, k=16 post(t2)
v.rescale_floats sp[4096], acc[0], sp[8192], cols=16 wait(t2)
m.pass sp[0], acc[0], rows=8, k=16, accumulate  ;~ operand acc updates acc[0]: wanted tokens that order it behind instruction 3, `v.rescale_floats sp[4096], acc[0], sp[8192], cols=16 wait(t2)`, which reads that, found none
halt
