loop r1, count=3  ;~ t1: wanted as many posts as waits in the body of a loop, found +1 per iteration
    v.fill sp[0], cols=16, value=r0 post(t1)
end
sync store wait(t1)
halt
