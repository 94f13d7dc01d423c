package faults

import (
	"context"
	"os"
	"strconv"
	"time"

	"github.com/levada-io/levada/sdk"
)

// slowProgram as the first argument makes this test binary a function that hands each message on after a while. The second argument is how long that takes,
// the third how many messages it takes at a time; 0 leaves that to the vertex.
const slowProgram = "faults-slow-function"

func slowMain(delay, concurrency string) {
	d, err := time.ParseDuration(delay)
	if err != nil {
		panic(err)
	}
	n, err := strconv.Atoi(concurrency)
	if err != nil {
		panic(err)
	}
	var options []sdk.Option
	if n > 0 {
		options = append(options, sdk.WithConcurrency(n))
	}
	slow := func(ctx context.Context, m sdk.Message) ([]sdk.Result, error) {
		select {
		case <-time.After(d):
			return []sdk.Result{{Keys: m.Keys, Value: m.Value}}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := sdk.ServeMap(context.Background(), sdk.MapFunc(slow), options...); err != nil {
		panic(err)
	}
	os.Exit(0)
}
