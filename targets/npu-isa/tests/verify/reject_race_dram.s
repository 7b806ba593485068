store dram[64], sp[0], row_bytes=64
load sp[64], dram[0], row_bytes=65  ;~ operand src reads dram[64]: wanted tokens that order it behind instruction 0, `store dram[64], sp[0], row_bytes=64`, which writes that, found none
halt
