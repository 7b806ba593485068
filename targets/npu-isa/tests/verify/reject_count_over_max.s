li r1, 9
loop r2, count=r1, max=8  ;~ operand count: wanted at most max = 8, found 9
end
halt
