loop r1, count=4
    add r1, r1, 1  ;~ rd: wanted a register other than the index of the loop at 0, found r1
end
halt
