// Counter-source emits the numbers 0, 1, 2, ..., as many as COUNT says (100 if it does not). It knows which are acknowledged,
// and when the platform comes back after a break it reads the others again: none is lost.
package main

import (
	"context"
	"log"
	"os"
	"strconv"

	"github.com/levada-io/levada/sdk"
)

func main() {
	count, err := strconv.Atoi(os.Getenv("COUNT"))
	if err != nil {
		count = 100
	}
	if err := sdk.ServeSource(context.Background(), newCounter(count)); err != nil {
		log.Fatal(err)
	}
}
