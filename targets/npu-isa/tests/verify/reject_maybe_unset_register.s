lds r1, sp[0], max=1
skip_if_zero r1, none
li r2, 5
none:
add r3, r2, 1  ;~ operand a: wanted r2 set on all ways here, found a register that may be unset
halt
