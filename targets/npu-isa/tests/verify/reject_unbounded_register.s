; Doubling has no closed form and no fixed point.
li r1, 32
loop r2, count=4
    v.fill sp[r1], cols=8, value=r0  ;~ operand dst: wanted 0 to 2^48 on all ways here, found -9223372036854775808
    add r1, r1, r1
end
halt
