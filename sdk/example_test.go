package sdk_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"time"

	"github.com/levada-io/levada/sdk"
)

func ExampleServeMap() {
	upper := sdk.MapFunc(func(_ context.Context, m sdk.Message) ([]sdk.Result, error) {
		return []sdk.Result{{Keys: m.Keys, Value: bytes.ToUpper(m.Value)}}, nil
	})
	if err := sdk.ServeMap(context.Background(), upper); err != nil {
		log.Fatal(err)
	}
}

func ExampleServeStreamMap() {
	split := sdk.StreamMapFunc(func(_ context.Context, m sdk.Message, emit func(sdk.Result) error) error {
		for part := range bytes.SplitSeq(m.Value, []byte(",")) {
			if err := emit(sdk.Result{Value: part}); err != nil {
				return err
			}
		}
		return nil
	})
	if err := sdk.ServeStreamMap(context.Background(), split); err != nil {
		log.Fatal(err)
	}
}

func ExampleServeBatchMap() {
	lookUp := func(ctx context.Context, ids [][]byte) ([][]byte, error) { return ids, nil } // one query for all
	enrich := sdk.BatchMapFunc(func(ctx context.Context, batch []sdk.Message) ([][]sdk.Result, error) {
		ids := make([][]byte, len(batch))
		for i, m := range batch {
			ids[i] = m.Value
		}
		rows, err := lookUp(ctx, ids)
		if err != nil {
			return nil, err
		}
		results := make([][]sdk.Result, len(batch))
		for i, row := range rows {
			results[i] = []sdk.Result{{Value: row}}
		}
		return results, nil
	})
	if err := sdk.ServeBatchMap(context.Background(), enrich); err != nil {
		log.Fatal(err)
	}
}

func ExampleServeTransform() {
	stamp := sdk.TransformFunc(func(_ context.Context, m sdk.Message) ([]sdk.Event, error) {
		when, err := time.Parse(time.RFC3339, string(m.Value[:20]))
		if err != nil {
			return nil, nil // not ours: drop it
		}
		return []sdk.Event{{EventTime: when, Keys: m.Keys, Value: m.Value}}, nil
	})
	if err := sdk.ServeTransform(context.Background(), stamp); err != nil {
		log.Fatal(err)
	}
}

func ExampleServeSink() {
	insert := func(ctx context.Context, value []byte) error { return nil }
	table := sdk.SinkFunc(func(ctx context.Context, batch []sdk.Message) ([]sdk.Written, error) {
		written := make([]sdk.Written, len(batch))
		for i, m := range batch {
			if err := insert(ctx, m.Value); err != nil {
				written[i] = sdk.Failed(err)
			}
		}
		return written, nil
	})
	if err := sdk.ServeSink(context.Background(), table); err != nil {
		log.Fatal(err)
	}
}

// A function needs no server to be tested.
func ExampleMapFunc() {
	route := sdk.MapFunc(func(_ context.Context, m sdk.Message) ([]sdk.Result, error) {
		return []sdk.Result{{Value: m.Value, Tags: []string{m.Headers()["region"]}}}, nil
	})
	m := sdk.Message{Value: []byte("order")}.WithExtras(map[string]string{"region": "north"}, sdk.Metadata{})
	results, err := route.Map(context.Background(), m)
	fmt.Println(results[0].Tags, err)
	// Output: [north] <nil>
}

func ExampleNackResult() {
	later := sdk.MapFunc(func(_ context.Context, m sdk.Message) ([]sdk.Result, error) {
		return []sdk.Result{sdk.NackResult(sdk.NackOptions{Reason: "rate limit", Delay: time.Minute})}, nil
	})
	results, _ := later.Map(context.Background(), sdk.Message{})
	fmt.Println(results[0].Tags[0], results[0].Nack.Delay)
	// Output: U+005C__NACK__ 1m0s
}
