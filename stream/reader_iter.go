package stream

import (
	"context"
	"io"
	"iter"
)

// Deliveries returns what Next returns, until the stream's end. It ends after the first error; the stream's end is not an error. Records
// of a delivery are valid until the loop goes on.
//
//	for d, err := range reader.Deliveries(ctx) {
//		if err != nil {
//			return err
//		}
//		// store d.Records and d.After in one transaction
//	}
func (r *Reader) Deliveries(ctx context.Context) iter.Seq2[*Delivery, error] {
	return func(yield func(*Delivery, error) bool) {
		for {
			d, err := r.Next(ctx)
			if err == io.EOF {
				return
			}
			if !yield(d, err) || err != nil {
				return
			}
		}
	}
}

// Records returns the records one by one, for programs that keep no position: one that is to go on after a restart needs
// [Reader.Deliveries]. It ends as Deliveries does. Records that the producer could not make have Bad set.
func (r *Reader) Records(ctx context.Context) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for d, err := range r.Deliveries(ctx) {
			if err != nil {
				yield(Record{}, err)
				return
			}
			for _, record := range d.Records {
				if !yield(record, nil) {
					return
				}
			}
		}
	}
}
