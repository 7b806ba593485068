loop r2, count=4
    li r3, 1
end
add r4, r3, r2
halt
