; Two queues in different columns of one matrix, up to 256 rows.
li r1, 8
li r2, 256
li r3, 128
load sp[0], dram[0], row_bytes=128, rows=r1, dst_stride=r2
v.fill sp[128], cols=32, value=r0, rows=r1, dst_stride=r2
halt
