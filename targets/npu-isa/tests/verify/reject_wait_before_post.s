; Another queue posts, but further down: with a full queue in between this would never end.
store dram[0], sp[0], row_bytes=64 wait(t1)  ;~ t1: wanted a token that is posted further up, found 0 on the way here
v.add sp[0], sp[64], sp[128], cols=16 post(t1)
halt
