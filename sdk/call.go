package sdk

import (
	"context"
	"sync"

	"google.golang.org/grpc"
)

// call runs user code and contains its panics.
func call[T any](user func() (T, error)) (result T, err error) {
	var failed *failure
	result, failed = contained(user)
	if failed != nil {
		return result, failed
	}
	return result, nil
}

func contained[T any](user func() (T, error)) (result T, failed *failure) {
	defer recovered(&failed)
	result, err := user()
	if err != nil {
		return result, userError(err)
	}
	return result, nil
}

// callMap is contained for the hot paths: without a closure.
func callMap(ctx context.Context, mapper Mapper, m Message) (results []Result, failed *failure) {
	defer recovered(&failed)
	results, err := mapper.Map(ctx, m)
	if err != nil {
		return nil, userError(err)
	}
	return results, nil
}

// sender lets several goroutines send on one stream.
type sender struct {
	mu     sync.Mutex
	stream grpc.ServerStream
}

func (s *sender) send(b []byte) error { return s.sendReply(reply{&b}) }

func (s *sender) sendReply(r reply) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream.SendMsg(r)
}

// handshake answers the first message of a stream with the given reply.
func handshake(stream grpc.ServerStream, wire envelopeLayout, answer []byte) error {
	var raw frame
	if err := stream.RecvMsg(&raw); err != nil {
		return err
	}
	e, err := decodeEnvelope(raw, wire)
	if err != nil {
		return errMalformed(err)
	}
	if !e.start {
		return errHandshake
	}
	return stream.SendMsg(reply{&answer})
}
