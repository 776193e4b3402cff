package engine

import "testing"

func TestKnown(t *testing.T) {
	if !known.required || !known.observing || !known.closing {
		t.Errorf("got %+v, want all fields known", known)
	}
}
