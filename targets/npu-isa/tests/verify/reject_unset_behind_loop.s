; The loop may run no time at all.
lds r1, sp[0], max=4
loop r2, count=r1, max=4
    li r3, 1
end
add r4, r3, 1  ;~ operand a: wanted r3 set on all ways here, found a register that may be unset
halt
