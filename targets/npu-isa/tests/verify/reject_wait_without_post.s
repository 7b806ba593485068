v.add sp[0], sp[64], sp[128], cols=16
store dram[0], sp[0], row_bytes=64 wait(t3)  ;~ t3: wanted a token that is posted further up, found 0 on the way here
halt
