package balance_test

import (
	"fmt"
	"time"

	"github.com/levada-io/levada/internal/proxy/balance"
)

func ExampleSet() {
	start := time.Now()
	now := func() int64 { return int64(time.Since(start)) }
	set := balance.New[string](balance.Options{})
	set.Update([]string{"10.0.0.1:80"}, now(), func(address string) string { return "connections to " + address })

	b := set.Pick(balance.Unary, now(), nil, nil)
	b.Start(balance.Unary, now())
	fmt.Println(b.Of, b.Open())
	b.Done(balance.Unary, balance.Success, 3*time.Millisecond, now())
	fmt.Println(b.Open(), b.Info(now()).Results)
	// Output:
	// connections to 10.0.0.1:80 1
	// 0 1
}
