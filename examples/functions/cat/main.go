// Cat hands every message on as it is.
package main

import (
	"context"
	"log"

	"github.com/levada-io/levada/sdk"
)

func main() {
	if err := sdk.ServeMap(context.Background(), sdk.MapFunc(cat)); err != nil {
		log.Fatal(err)
	}
}

func cat(_ context.Context, m sdk.Message) ([]sdk.Result, error) {
	return []sdk.Result{{Keys: m.Keys, Value: m.Value, Metadata: m.Metadata().User}}, nil
}
