v.fill sp[0], cols=4, value=r0, rows=r7  ;~ operand rows: wanted r7 set on all ways here, found a register that may be unset
halt
