// Log-sink writes each message to standard output, as a line of JSON.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"log"
	"os"
	"time"

	"github.com/levada-io/levada/sdk"
)

func main() {
	if err := sdk.ServeSink(context.Background(), sdk.SinkFunc(write)); err != nil {
		log.Fatal(err)
	}
}

type line struct {
	ID        string            `json:"id"`
	EventTime time.Time         `json:"eventTime"`
	Keys      []string          `json:"keys,omitempty"`
	Headers   map[string]string `json:"headers,omitempty"`
	Value     string            `json:"value"`
}

// write says that messages are written only when the lines are out of the process.
func write(_ context.Context, batch []sdk.Message) ([]sdk.Written, error) {
	out := bufio.NewWriterSize(os.Stdout, 1<<16)
	lines := json.NewEncoder(out)
	for _, m := range batch {
		if err := lines.Encode(line{m.ID, m.EventTime, m.Keys, m.Headers(), string(m.Value)}); err != nil {
			return failed(batch, err), nil
		}
	}
	if err := out.Flush(); err != nil {
		return failed(batch, err), nil
	}
	return nil, nil
}

func failed(batch []sdk.Message, err error) []sdk.Written {
	written := make([]sdk.Written, len(batch))
	for i := range written {
		written[i] = sdk.Failed(err)
	}
	return written
}
