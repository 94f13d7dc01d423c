// Time-transformer takes the event time out of the message: {"time": "2026-11-21T10:00:00Z", ...}, or a time in RFC 3339
// before the first space. A message without a time is dropped.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log"
	"time"

	"github.com/levada-io/levada/sdk"
)

func main() {
	if err := sdk.ServeTransform(context.Background(), sdk.TransformFunc(stamp)); err != nil {
		log.Fatal(err)
	}
}

func stamp(_ context.Context, m sdk.Message) ([]sdk.Event, error) {
	when, ok := eventTime(m.Value)
	if !ok {
		return nil, nil
	}
	return []sdk.Event{{EventTime: when, Keys: m.Keys, Value: m.Value}}, nil
}

func eventTime(value []byte) (time.Time, bool) {
	var record struct {
		Time time.Time `json:"time"`
	}
	if json.Unmarshal(value, &record) == nil {
		return record.Time, !record.Time.IsZero()
	}
	first, _, _ := bytes.Cut(value, []byte(" "))
	when, err := time.Parse(time.RFC3339Nano, string(first))
	return when, err == nil
}
