; A register that alternates between two values is no induction variable.
li r1, 0
loop r2, count=100
    v.fill sp[r1], cols=8, value=r0
    li r3, 262112
    sub r1, r3, r1
end
halt
