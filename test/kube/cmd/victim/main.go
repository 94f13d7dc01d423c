// Victim is a container that ends as its arguments ask: `victim AFTER eat` takes memory until it is killed, `victim AFTER exit CODE` ends,
// both after a duration such as 3s, and `victim AFTER wait` ends well at SIGTERM, that long after it.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 3 {
		fail("usage: victim AFTER eat | exit CODE | wait")
	}
	after, err := time.ParseDuration(os.Args[1])
	if err != nil {
		fail(err.Error())
	}
	switch os.Args[2] {
	case "eat":
		time.Sleep(after)
		var eaten [][]byte
		for {
			piece := make([]byte, 1<<20)
			for i := range piece {
				piece[i] = 1 // only memory that was written counts
			}
			eaten = append(eaten, piece)
			if len(eaten)%64 == 0 {
				fmt.Println(len(eaten), "MiB")
			}
		}
	case "exit":
		time.Sleep(after)
		code, err := strconv.Atoi(os.Args[len(os.Args)-1])
		if err != nil {
			fail(err.Error())
		}
		os.Exit(code)
	case "wait":
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		<-term
		time.Sleep(after)
	default:
		fail("unknown end " + os.Args[2])
	}
}

func fail(text string) {
	fmt.Fprintln(os.Stderr, text)
	os.Exit(2)
}
