// Poison misbehaves on demand, for tests of what a pipeline survives: a message that contains "crash" kills the process
// as the kernel would, "panic" panics, "error" returns an error, "hang" never returns. All others are handed on.
package main

import (
	"bytes"
	"context"
	"errors"
	"log"
	"os"

	"github.com/levada-io/levada/sdk"
)

func main() {
	var options []sdk.Option
	if os.Getenv("POISON_WITHOUT_BLOCKS") != "" {
		options = append(options, sdk.WithoutBlocks())
	}
	if err := sdk.ServeMap(context.Background(), sdk.MapFunc(poison), options...); err != nil {
		log.Fatal(err)
	}
}

func poison(_ context.Context, m sdk.Message) ([]sdk.Result, error) {
	switch {
	case bytes.Contains(m.Value, []byte("crash")):
		self, err := os.FindProcess(os.Getpid())
		if err == nil {
			err = self.Kill()
		}
		if err != nil {
			return nil, err
		}
		select {} // the signal is under way
	case bytes.Contains(m.Value, []byte("panic")):
		panic("poison: " + string(m.Value))
	case bytes.Contains(m.Value, []byte("error")):
		return nil, errors.New("poison: " + string(m.Value))
	case bytes.Contains(m.Value, []byte("hang")):
		select {}
	}
	return []sdk.Result{{Keys: m.Keys, Value: m.Value}}, nil
}
