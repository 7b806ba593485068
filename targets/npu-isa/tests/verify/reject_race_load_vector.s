load sp[0], dram[0], row_bytes=256
v.silu sp[512], sp[128], cols=16  ;~ operand a reads sp[128]: wanted tokens that order it behind instruction 0, `load sp[0], dram[0], row_bytes=256`, which writes that, found none
halt
