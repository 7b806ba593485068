; Two buffers, two credits, the buffer by the index of a loop whose count is read at run time.
.data tiles
.fill u8, 1, 4096
li r1, tiles
sync matrix post(t2, t2)
lds r9, sp[0], max=16
loop r2, count=r9, max=16
    and r3, r2, 1
    mul r3, r3, 256
    load w[r3], dram[r1], row_bytes=256 wait(t2) post(t1)
    m.preload i8, w[r3], k=16, n=16 wait(t1) post(t2)
    add r1, r1, 256
end
halt
