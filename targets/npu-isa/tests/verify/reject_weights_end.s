load w[32736], dram[0], row_bytes=33  ;~ operand dst writes w[32768]: wanted below w[32768] on edge-16, found bytes up to 32769
halt
