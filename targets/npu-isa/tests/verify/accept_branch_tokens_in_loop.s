sync vector post(t1)
loop r1, count=4
    branch lt, r1, 2, low
    sync store wait(t1) post(t2)
    sync vector wait(t2) post(t1)
low:
end
sync store wait(t1)
halt
