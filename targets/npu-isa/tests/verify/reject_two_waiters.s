sync vector post(t1, t1)
sync store wait(t1)
sync load wait(t1)  ;~ t1: wanted one queue that waits for it, store as instruction 1, found load
halt
