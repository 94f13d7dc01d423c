package sdk

import "google.golang.org/protobuf/encoding/protowire"

// envelope is a request of the map, transform or sink contract: a message, the handshake, or the end of a batch.
type envelope struct {
	message []byte
	id      string
	// start and end are handshake.sot and status.eot.
	start, end bool
}

// envelopeLayout is where the requests of one kind have their parts; 0 for those that they do not have.
type envelopeLayout struct{ id, handshake, status protowire.Number }

var (
	mapEnvelope       = envelopeLayout{id: 2, handshake: 3, status: 4}
	transformEnvelope = envelopeLayout{handshake: 2}
	sinkEnvelope      = envelopeLayout{status: 2, handshake: 3}
)

func decodeEnvelope(b []byte, wire envelopeLayout) (envelope, error) {
	var e envelope
	for len(b) > 0 {
		var f field
		var err error
		if f, b, err = next(b); err != nil {
			return e, err
		}
		if f.typ != protowire.BytesType {
			continue
		}
		switch f.num {
		case 1:
			// Encoded messages are merged by joining them. It happens only in hostile tests.
			if e.message == nil {
				e.message = f.bytes
			} else {
				e.message = append(e.message[:len(e.message):len(e.message)], f.bytes...)
			}
		case wire.id:
			e.id, err = text(f.bytes)
		case wire.handshake:
			err = mergeFlag(&e.start, f.bytes)
		case wire.status:
			err = mergeFlag(&e.end, f.bytes)
		}
		if err != nil {
			return e, err
		}
	}
	return e, nil
}

// mergeFlag reads a message whose only field is a bool.
func mergeFlag(flag *bool, b []byte) error {
	for len(b) > 0 {
		var f field
		var err error
		if f, b, err = next(b); err != nil {
			return err
		}
		if f.num == 1 && f.typ == protowire.VarintType {
			*flag = protowire.DecodeBool(f.number)
		}
	}
	return nil
}
