; 32 · 32 steps of 256 bytes end exactly with the scratchpad.
li r1, 0
loop r2, count=32
    loop r3, count=32
        v.fill sp[r1], cols=64, value=r0
        add r1, r1, 256
    end
end
sub r1, r1, 256
v.fill sp[r1], cols=64, value=r0
halt
