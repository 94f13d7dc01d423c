// Upper turns each message into upper case.
package main

import (
	"bytes"
	"context"
	"log"

	"github.com/levada-io/levada/sdk"
)

func main() {
	if err := sdk.ServeMap(context.Background(), sdk.MapFunc(upper)); err != nil {
		log.Fatal(err)
	}
}

func upper(_ context.Context, m sdk.Message) ([]sdk.Result, error) {
	return []sdk.Result{{Keys: m.Keys, Value: bytes.ToUpper(m.Value)}}, nil
}
