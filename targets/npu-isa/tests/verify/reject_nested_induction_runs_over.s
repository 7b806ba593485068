li r1, 32
loop r2, count=32
    loop r3, count=32
        v.fill sp[r1], cols=64, value=r0  ;~ operand dst writes sp[262175]: wanted below sp[262144] on edge-16, found bytes up to 262176
        add r1, r1, 256
    end
end
halt
