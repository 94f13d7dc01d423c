// Rawcodec is the gRPC proxy that grpc-go's own interfaces lead to: a handler for unknown methods, and a codec that does not decode. It has one
// connection to the backend. The benchmark measures it beside the others; it is nothing to use.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/levada-io/levada/bench/proxy/rawmessage"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "address to listen on")
	backend := flag.String("backend", "", "address of the backend")
	cert := flag.String("cert", "", "certificate to listen with TLS")
	key := flag.String("key", "", "its key")
	flag.Parse()
	if err := run(*listen, *backend, *cert, *key); err != nil {
		fmt.Fprintln(os.Stderr, "rawcodec:", err)
		os.Exit(1)
	}
}

func run(listen, backend, cert, key string) error {
	conn, err := grpc.NewClient("passthrough:///"+backend, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawmessage.Codec{}), grpc.MaxCallRecvMsgSize(math.MaxInt32)))
	if err != nil {
		return err
	}
	defer conn.Close()
	options := []grpc.ServerOption{
		grpc.ForceServerCodecV2(rawmessage.Codec{}), grpc.MaxRecvMsgSize(math.MaxInt32),
		grpc.UnknownServiceHandler(func(_ any, caller grpc.ServerStream) error { return forward(conn, caller) }),
	}
	if cert != "" {
		tls, err := credentials.NewServerTLSFromFile(cert, key)
		if err != nil {
			return err
		}
		options = append(options, grpc.Creds(tls))
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	return grpc.NewServer(options...).Serve(listener)
}

// forward carries one call. The goroutine for requests ends at the latest when the handler returns, since that ends the caller's stream.
func forward(conn *grpc.ClientConn, caller grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(caller)
	sent, _ := metadata.FromIncomingContext(caller.Context())
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(caller.Context(), sent))
	defer cancel()
	backend, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	go func() {
		for {
			var m rawmessage.Message
			if err := caller.RecvMsg(&m); err != nil {
				if err != io.EOF {
					cancel()
				}
				_ = backend.CloseSend() // which never fails
				return
			}
			if backend.SendMsg(&m) != nil {
				return // the reason is what RecvMsg returns below
			}
		}
	}()
	header, err := backend.Header()
	if err == nil && header != nil {
		err = caller.SendHeader(header)
	}
	for err == nil {
		var m rawmessage.Message
		if err = backend.RecvMsg(&m); err == nil {
			err = caller.SendMsg(&m)
		}
	}
	caller.SetTrailer(backend.Trailer())
	if err == io.EOF {
		return nil
	}
	return err
}
