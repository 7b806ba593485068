; The buffer follows the module's number, also when a module between two others is skipped: the tokens then say nothing about it.
.space weights, 1024
li r1, weights
li r10, 0
sync matrix post(t2, t2)
loop r2, count=4
    mul r5, r2, 4
    lds r6, sp[r5], max=8
    skip_if_zero r6, nobody
    and r3, r2, 1
    mul r3, r3, 256
    load w[r3], dram[r1], row_bytes=256 wait(t2) post(t1)  ;~ operand dst writes w[256]: wanted tokens that order it behind instruction 10, `m.preload i8, w[r3], k=16, n=16 wait(t1)`, which reads that, found none
    m.preload i8, w[r3], k=16, n=16 wait(t1)
    m.pass sp[64], acc[0], rows=r6, k=16 post(t2)
nobody:
    add r1, r1, 256
end
halt
