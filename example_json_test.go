package chaistore_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"strconv"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/chaisql/chai"

	"go.elara.ws/chaistore"
)

// jsonCodec keeps sessions as JSON.
type jsonCodec struct{}

type jsonSession struct {
	Deadline time.Time
	Values   map[string]any
}

func (jsonCodec) Encode(deadline time.Time, values map[string]any) ([]byte, error) {
	return json.Marshal(jsonSession{deadline, values})
}

func (jsonCodec) Decode(data []byte) (time.Time, map[string]any, error) {
	var session jsonSession
	err := json.Unmarshal(data, &session)
	return session.Deadline, session.Values, err
}

// The IDs of users are numbers, and the codec decodes them as float64.
func ExampleOwnerByKey() {
	db, err := chai.Open(":memory:")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	sessionManager := scs.New()
	sessionManager.Codec = jsonCodec{}
	store, err := chaistore.NewWithConfig(db, chaistore.Config{
		CreateTable: true,
		Owner:       chaistore.OwnerByKey(sessionManager.Codec, "userID"),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer store.StopCleanup()
	sessionManager.Store = store

	ctx, err := sessionManager.Load(context.Background(), "")
	if err != nil {
		log.Fatal(err)
	}
	sessionManager.Put(ctx, "userID", 1_234_567)
	token, _, err := sessionManager.Commit(ctx)
	if err != nil {
		log.Fatal(err)
	}

	ctx, err = sessionManager.Load(context.Background(), token)
	if err != nil {
		log.Fatal(err)
	}
	id, _ := sessionManager.Get(ctx, "userID").(float64) // GetInt returns 0
	owner := strconv.FormatInt(int64(id), 10)            // fmt.Sprint(id) is 1.234567e+06
	n, err := store.DeleteOf(ctx, owner)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(n, "session ended of user", owner)
	// Output: 1 session ended of user 1234567
}
