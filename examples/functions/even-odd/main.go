// Even-odd tags each message: even, odd, or neither for one that is not a whole number. Edges can then choose by the tag.
package main

import (
	"bytes"
	"context"
	"log"
	"strconv"

	"github.com/levada-io/levada/sdk"
)

func main() {
	if err := sdk.ServeMap(context.Background(), sdk.MapFunc(evenOdd)); err != nil {
		log.Fatal(err)
	}
}

func evenOdd(_ context.Context, m sdk.Message) ([]sdk.Result, error) {
	tag := kind(m.Value)
	return []sdk.Result{{Keys: []string{tag}, Value: m.Value, Tags: []string{tag}}}, nil
}

func kind(value []byte) string {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
	switch {
	case err != nil:
		return "neither"
	case n%2 == 0:
		return "even"
	}
	return "odd"
}
