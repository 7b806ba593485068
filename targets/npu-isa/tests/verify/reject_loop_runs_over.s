li r1, 0
loop r2, count=1025
    v.fill sp[r1], cols=64, value=r0  ;~ operand dst writes sp[262399]: wanted below sp[262144] on edge-16, found bytes up to 262400
    add r1, r1, 256
end
halt
