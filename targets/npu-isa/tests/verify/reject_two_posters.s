sync vector post(t1)
sync matrix post(t1)  ;~ t1: wanted one queue that posts it, vector as instruction 0, found matrix
sync store wait(t1)
sync store wait(t1)
halt
