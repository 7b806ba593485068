; Three credits for two buffers.
.data tiles
.fill u8, 1, 4096
li r1, tiles
sync matrix post(t2, t2)
sync matrix post(t2)
loop r2, count=16
    and r3, r2, 1
    mul r3, r3, 256
    load w[r3], dram[r1], row_bytes=256 wait(t2) post(t1)  ;~ operand dst writes w[0]: wanted tokens that order it behind instruction 7, `m.preload i8, w[r3], k=16, n=16 wait(t1) post(t2)`, which reads that, found none
    m.preload i8, w[r3], k=16, n=16 wait(t1) post(t2)
    add r1, r1, 256
end
halt
