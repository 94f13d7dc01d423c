package stream

import (
	"context"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/proto"
)

// Typed is a record with its value decoded.
type Typed[T any] struct {
	// Record is the record as it came. Its key and value are only valid until the handler returns.
	Record Record
	// Value is the decoded value, with memory of its own.
	Value T
}

// JSON makes a handler of one for decoded JSON values. Tx is that of the store's handler, such as pgx.Tx or *sql.Tx:
//
//	store.Sink(stream.JSON(func(ctx context.Context, tx pgx.Tx, b *stream.Batch, orders []stream.Typed[Order]) error { ... }))
//
// A record whose value is not JSON of T goes into quarantine and is not passed on; handle is not called when none is left.
func JSON[Tx, T any](handle func(ctx context.Context, tx Tx, b *Batch, items []Typed[T]) error) func(ctx context.Context, tx Tx, b *Batch) error {
	return decoded(decodeJSON[T], handle)
}

// Proto is [JSON] for protobuf messages: M is a pointer to a generated message.
func Proto[Tx any, M proto.Message](handle func(ctx context.Context, tx Tx, b *Batch, items []Typed[M]) error) func(ctx context.Context, tx Tx, b *Batch) error {
	return decoded(decodeProto[M], handle)
}

// EachJSON is [Each] for decoded JSON values, for [AtLeastOnce]. A record whose value is not JSON of T goes into quarantine.
func EachJSON[T any](handle func(ctx context.Context, b *Batch, item Typed[T]) error) EachHandler {
	return eachDecoded(decodeJSON[T], handle)
}

// EachProto is [EachJSON] for protobuf messages.
func EachProto[M proto.Message](handle func(ctx context.Context, b *Batch, item Typed[M]) error) EachHandler {
	return eachDecoded(decodeProto[M], handle)
}

// JSONValue appends an item as JSON: it is the value of [SliceOf] and [FuncOf]. An item that cannot be encoded costs that record only.
func JSONValue[T any](dst []byte, item T) ([]byte, error) {
	text, err := json.Marshal(item)
	if err != nil {
		return dst, Skip(fmt.Errorf("encode %T as JSON: %w", item, err))
	}
	return append(dst, text...), nil
}

// ProtoValue is [JSONValue] for protobuf messages.
func ProtoValue[M proto.Message](dst []byte, item M) ([]byte, error) {
	out, err := proto.MarshalOptions{}.MarshalAppend(dst, item)
	if err != nil {
		return dst, Skip(fmt.Errorf("encode %T: %w", item, err))
	}
	return out, nil
}

func decodeJSON[T any](value []byte) (item T, err error) {
	if err = json.Unmarshal(value, &item); err != nil {
		return item, fmt.Errorf("the value is not JSON of %T: %w", item, err)
	}
	return item, nil
}

func decodeProto[M proto.Message](value []byte) (M, error) {
	var none M
	item, ok := none.ProtoReflect().Type().New().Interface().(M)
	if !ok {
		return none, Halt(fmt.Errorf("%T cannot be decoded into: expected a pointer to a generated message", none))
	}
	if err := proto.Unmarshal(value, item); err != nil {
		return none, fmt.Errorf("the value is not a message %s: %w", item.ProtoReflect().Descriptor().FullName(), err)
	}
	return item, nil
}

func decoded[Tx, T any](decode func([]byte) (T, error), handle func(context.Context, Tx, *Batch, []Typed[T]) error) func(context.Context, Tx, *Batch) error {
	return func(ctx context.Context, tx Tx, b *Batch) error {
		items := make([]Typed[T], 0, len(b.Records))
		for _, r := range b.Records {
			item, err := decode(r.Value)
			switch {
			case err == nil:
				items = append(items, Typed[T]{r, item})
			case VerdictOf(err) == VerdictHalt:
				return err
			default:
				b.Skip(r, err)
			}
		}
		if len(items) == 0 {
			return nil
		}
		return handle(ctx, tx, b, items)
	}
}

func eachDecoded[T any](decode func([]byte) (T, error), handle func(context.Context, *Batch, Typed[T]) error) EachHandler {
	return Each(func(ctx context.Context, b *Batch, r Record) error {
		item, err := decode(r.Value)
		if err != nil {
			if VerdictOf(err) != VerdictHalt {
				err = Skip(err)
			}
			return err
		}
		return handle(ctx, b, Typed[T]{r, item})
	})
}
