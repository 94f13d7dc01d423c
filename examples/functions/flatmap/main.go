// Flatmap splits each message at its commas into messages of their own.
package main

import (
	"bytes"
	"context"
	"log"

	"github.com/levada-io/levada/sdk"
)

func main() {
	if err := sdk.ServeMap(context.Background(), sdk.MapFunc(split)); err != nil {
		log.Fatal(err)
	}
}

// split leaves out empty parts, so an empty message is filtered out.
func split(_ context.Context, m sdk.Message) ([]sdk.Result, error) {
	var results []sdk.Result
	for part := range bytes.SplitSeq(m.Value, []byte(",")) {
		if len(part) > 0 {
			results = append(results, sdk.Result{Keys: m.Keys, Value: part})
		}
	}
	return results, nil
}
