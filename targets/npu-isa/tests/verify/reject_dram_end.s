li r1, 4294967295
store dram[r1], sp[0], row_bytes=2  ;~ operand dst writes dram[4294967296]: wanted below dram[4294967296] on edge-16, found bytes up to 4294967297
halt
