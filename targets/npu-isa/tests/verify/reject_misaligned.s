; 2 is no multiple of an f32's size.
loop r1, count=4
    mul r2, r1, 2
    v.fill sp[r2], cols=1, value=r0  ;~ operand dst: wanted a multiple of 4, found 6
end
halt
