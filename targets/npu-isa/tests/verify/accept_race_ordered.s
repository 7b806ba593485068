; A token from the later of two loads orders both.
load sp[0], dram[0], row_bytes=256
load sp[256], dram[256], row_bytes=256 post(t1)
v.add sp[512], sp[128], sp[256], cols=16 wait(t1)
halt
